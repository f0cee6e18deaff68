"""The fault programme: what can go wrong is done to a bank on purpose, and what is left is judged.

``python -m tests.faults push|nightly|release`` runs it; ``programme.py`` lists the harnesses, ``mutants.py`` the
faults that they must find.
"""
