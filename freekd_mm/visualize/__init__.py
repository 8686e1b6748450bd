"""Pictures of what is distilled: wavelet bands, PoI masks, channel weights."""
