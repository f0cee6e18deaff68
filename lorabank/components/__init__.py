"""What pages are made of: tables, charts and graphs as HTML and SVG with real text, without scripts.

A page extends ``frame.html.j2`` (see `lorabank.components.frame`) and calls the functions of this room for pictures.
Colours are classes of one stylesheet, so the same markup is drawn in light and dark, on paper, and under a content
security policy that forbids inline styles.
"""
