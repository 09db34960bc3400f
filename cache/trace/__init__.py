"""The decisions of a take: written down, drawn, compared and made again."""
