"""One HTML page of what a network thinks, from its relations of insight.

`text.py` reads the relations of a text network, `build.py` puts a page together from
its parts: page.html, page.css and page.js. The page asks for nothing but itself.
"""
