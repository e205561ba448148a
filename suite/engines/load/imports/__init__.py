"""Results of other load generators, read into the names and units of `suite load`.

One module per tool: `recognised` knows its documents by their content, `read` makes `Run`s of them. What each tool
really computes under its names: card `methods/_serving_metrics.md`, section 3.
"""
