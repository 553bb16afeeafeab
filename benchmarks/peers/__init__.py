"""What a user would do without edge_effdet, one module for each peer."""
