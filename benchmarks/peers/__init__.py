"""What a user would do without edge_effdet, one script a peer."""
