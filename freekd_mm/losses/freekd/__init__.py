"""FreeKD's losses."""
