"""What is installed, what is wrong with it, and the tested versions."""
