"""Programs as users write them, with einsums of jnp and with those of this library in their place."""
