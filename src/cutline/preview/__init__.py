"""What a trainer will see, told before the money is spent."""
