"""What does a study look like on a laptop, with models that really learn?

A generated world (facts, sums, small programs, scenes, orders, commands, in two languages), base
models pretrained on documents of it, and instruction sets and benchmarks drawn from the same world.
In: seeds. Out: files that the rest of the program reads like any other model, dataset or benchmark.
The stages never import this package; they meet it only through cards and files.
"""
