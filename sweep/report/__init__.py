"""What a person sees of a sweep: tables, figures, page, files, screen, importance, comparison, replay."""
