"""What omni still understands of other projects, and what it says of their names that are gone."""
