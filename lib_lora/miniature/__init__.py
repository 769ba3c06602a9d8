"""The miniature: an SD1-shaped checkpoint small enough to ship, and the drawings it knows."""
