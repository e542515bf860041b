"""Tuning: settings of a method chosen on validation, with seeds that no result is read off."""
