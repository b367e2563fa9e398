"""A loaded model: vocabulary, weights, adapters, placement on devices."""
