"""The methods: each is its paper over the one engine."""
