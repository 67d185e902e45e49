"""What the command line knows of its commands, and how it says what they did."""
