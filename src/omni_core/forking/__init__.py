"""Starting processes in no time: one that has imported torch and diffusers, and does nothing but fork."""
