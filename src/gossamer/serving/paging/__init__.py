"""Where keys and values lie: pages, requests that hold them, shared prefixes, and how much there is room for."""
