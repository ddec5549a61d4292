"""The commands: a file's name is the command's. Each file has `run`, or `app` for a group, and its place in the help.

ORDER: commands are listed by it, then by name. `run`: a function whose signature is the command's flags and whose
docstring is its help. Checks first; torch is imported inside, when all that can be refused has been refused.
"""
