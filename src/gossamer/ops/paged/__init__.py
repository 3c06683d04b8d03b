"""Keys and values in pages: appended, summarized, scored and attended to, where they lie."""
