"""motion_qa: short clips drawn from seeds, with questions about key frames and about what moves between them."""
