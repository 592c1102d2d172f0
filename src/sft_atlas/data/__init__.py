"""Turn rows of text into token sequences whose answer, and nothing else, is supervised."""
