"""What runs inside a cell. Given to the cell's interpreter as text (see sandbox.cell_walls), importable for its types.

From the outside in: zygote.py (waits for jobs), job.py (process 1 of a job, and the process that becomes the program),
order.py and page.py (what it is told and what it tells), python_main.py (a Python program as `__main__`), kernel.py
(system calls that Python has no name for).
"""
