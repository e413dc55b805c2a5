"""The command line: one thin file a verb. Heavy libraries are imported inside the verbs, never at the top."""
