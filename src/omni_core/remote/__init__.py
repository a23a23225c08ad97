"""What executors need whose workers are processes: how the driver reaches, watches and replaces them."""
