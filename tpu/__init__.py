"""What only TPUs need: their numbers, and plans of recipes made by compiling for chips that are not there."""
