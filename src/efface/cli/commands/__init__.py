"""The commands: a file's name is the command's. Each file has `run`, or `app` for a group, and ORDER.

ORDER: commands are listed by it, then by name. `run`: a function whose signature is the command's flags and whose
docstring is its help. All checks come first; torch is imported afterwards, inside the function.
"""
