"""What runs inside a cell. Given to the cell's interpreter as text (see sandbox.cell_start), importable here for the types.

From the outside in: zygote.py (waits for jobs), job_init.py (process 1 of a job), job.py (the process that becomes the
program), python_main.py (a Python program as `__main__`), kernel.py (system calls that Python has no name for).
"""
