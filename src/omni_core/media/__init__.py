"""What pipelines make, as files: pictures, videos, sound and arrays, each saying how it was made."""
