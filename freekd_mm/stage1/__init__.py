"""The training of the frequency prompt: the first stage of FreeKD."""
