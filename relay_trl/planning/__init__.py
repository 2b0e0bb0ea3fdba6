"""Plans what a training or a service will need, from configs and without weights."""
