"""The command line: one file a verb or small group of verbs; everything they do is a call of the package below."""
