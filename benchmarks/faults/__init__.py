"""What happens to a run when something breaks: `python -m benchmarks.faults` (`make test-faults`).

`plan` says which faults there are and what each must lead to; `inside` is the program that is broken, from within, `trial` breaks
it from outside and measures; `page` writes docs/faults.md.
"""
