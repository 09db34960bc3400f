"""The demo model: a small but genuine Wan, the scenes that it was trained on, and how well it renders them."""
