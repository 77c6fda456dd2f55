"""The networks by name. Every variant goes through one code path; see ldct/config.py ModelConfig for the switches."""
