"""What the losses on wavelet bands share: sums and gradients of Haar bands, three ways to compute them."""

from __future__ import annotations
