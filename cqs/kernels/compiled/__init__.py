"""What Numba compiles for the kernel `numba`, from the bottom up: vectors, products, reading, hiding, tiles, loops.

Beside the last two are `sharing`, by which threads take items, `backward_bias`, `backward_tiles` and `backward`, for
gradients, `merging`, and for processors with AMX `pieces`, `weighing`, `amx` and `amx_tiles`.
`cqs.kernels.numba_modules` imports these files when a call first needs them, since they import Numba, and Numba
compiles a file when it is imported: in 15 to 20 seconds the first time, and it keeps the result beside the file or in
the user's cache. It looks at the file of a function only, and not at what that imports. Types are those of Numba's
signatures; mypy does not look at them. Arguments without further description are addresses, sizes and distances in
bytes: handing on parts of arrays would count who uses them, which takes as long as a small tile.
"""
