"""evaluation.utility"""
