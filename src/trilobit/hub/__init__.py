"""Models by name: what a name means, the download, and the packed files kept of them."""
