"""The data engine: sources, pseudo-label corpora, selection and the store. Never imports torch."""
