"""Pictures: films, stills and previews, written, read and compared."""
