"""One HTML page of what a network thinks, from its relations of insight.

`text.py` and `image.py` read the relations of a network, `build.py` puts a page
together from its parts: text.html and text.js, and what every page has, base.html,
page.css and common.js. A page asks for nothing but itself.
"""
