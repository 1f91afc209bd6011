"""Measurements that users run on their own machines, beside what they would use instead."""
