"""Model side: dataset snapshot to trained, probed, registered Image GPT."""
