"""Objects for `Model` over libraries that people use: thin, and each imported only where it is used.

`asyncdl.adapters.sklearn`, `asyncdl.adapters.torch`, `asyncdl.adapters.transformers`,
`asyncdl.adapters.sentence_transformers`, `asyncdl.adapters.openai`; each needs the extra of its name.

An adapter is a value: it holds names, options and weights, is pickled without what it has opened or loaded, and opens or loads
that where it is called, once.
"""
