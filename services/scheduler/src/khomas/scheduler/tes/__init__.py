"""The scheduler for clients of GA4GH TES 1.1: tasks over HTTP are jobs of the same core, under the same rights."""
