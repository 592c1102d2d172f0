"""Parts of `train.py`: what is trained, the arms that train it, and what is made of their times."""
