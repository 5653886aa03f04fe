"""What training will see, before it is paid for: of one picture, of a dataset, of a trainer's own files."""
