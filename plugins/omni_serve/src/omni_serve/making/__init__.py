"""From what a client asks for to files: the pipeline's arguments, the request, its progress, what is encoded of it."""
