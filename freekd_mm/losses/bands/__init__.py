"""What the losses on wavelet bands share: sums and gradients of Haar bands, three ways to compute them."""
