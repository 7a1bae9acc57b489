"""A page that explains a table.

`content` gathers results by layer, `advice` puts them into sentences. Pictures: `plot_data` reduces
results to few points, `plots` builds `plot_types` of them, `drawing` makes these SVG or PNG. The
page: `page` and `sections` make HTML from pieces of `markup`, `style` says how it looks.
"""
